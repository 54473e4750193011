# STABLEMASK_SANITIZE: instruments every C++ object of this build. The first finding ends the program
# with a stack trace and an exit code other than 0. LibTorch and SentencePiece stay as they are.
# "fuzzer" adds what libFuzzer needs to the objects; the harnesses in tests/fuzz link its main.
if(NOT STABLEMASK_SANITIZE)
  return()
endif()
if(NOT STABLEMASK_SANITIZE MATCHES
    "^(address|undefined|address,undefined|thread|fuzzer|fuzzer,(address|undefined|address,undefined))$")
  message(FATAL_ERROR "STABLEMASK_SANITIZE is '${STABLEMASK_SANITIZE}': use address, undefined, "
                      "\"address,undefined\" or thread (address and thread exclude each other), or "
                      "fuzzer, alone or before the first three")
endif()
if(STABLEMASK_SANITIZE MATCHES "^fuzzer" AND NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  message(FATAL_ERROR "STABLEMASK_SANITIZE is '${STABLEMASK_SANITIZE}': only Clang has libFuzzer; "
                      "use the presets asan and fuzz-coverage")
endif()
# GCC takes the instrumented copies of std::regex and std::optional for uninitialised memory.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
endif()
string(REPLACE "fuzzer" "fuzzer-no-link" sanitizers "${STABLEMASK_SANITIZE}")
# -O1 after the build type's level: -O2 costs a third more compile time and finds nothing else.
foreach(flag -fsanitize=${sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:${flag}>)
endforeach()
add_link_options(-fsanitize=${sanitizers})
# For tests of memory and speed: Clang has no macro of GCC's name for it.
add_compile_definitions($<$<COMPILE_LANGUAGE:CXX>:STABLEMASK_SANITIZED>)
if(STABLEMASK_COVERAGE)
  add_compile_options(-fprofile-instr-generate -fcoverage-mapping)
  add_link_options(-fprofile-instr-generate)
endif()
