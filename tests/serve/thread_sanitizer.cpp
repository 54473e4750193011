/// Read by the thread sanitizer. cpp-httplib is a library of the system and not instrumented: the
/// sanitizer sees the memcmp by which it looks into a function-local static set, but not the
/// static's atomic guard, and would report the first use of the set as a race. Races that end in
/// memcmp are not reported in this binary.
extern "C" const char* __tsan_default_suppressions() { return "race:memcmp\n"; }
