// Commits the fault that its argument names, so that a test can see a sanitizer stop the program.
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

namespace {

int overflow(int by) { return std::numeric_limits<int>::max() + by; }

int race() {
  int count = 0;
  std::thread other([&] { ++count; });
  ++count;
  other.join();
  return count;
}

int read_after_free(size_t index) {
  const auto* values = new std::vector<int>(index + 1);
  const int* value = &(*values)[index];
  delete values;
  return *value;
}

int* volatile leaked = nullptr;

void leak() {
  leaked = new int[1000];
  leaked = nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const char* fault = argc == 2 ? argv[1] : "";
  int result = 0;
  if (std::strcmp(fault, "overflow") == 0) result = overflow(argc);
  if (std::strcmp(fault, "race") == 0) result = race();
  if (std::strcmp(fault, "memory") == 0) result = read_after_free(static_cast<size_t>(argc));
  if (std::strcmp(fault, "leak") == 0) leak();
  std::printf("%s: not noticed (%d)\n", fault, result);
}
