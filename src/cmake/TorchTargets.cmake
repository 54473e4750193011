# Imported target `stablemask_torch`: the headers and libraries of a LibTorch folder or of Python's
# torch package. Torch's own package file insists on nvcc whenever the library was built for CUDA,
# also for programs that compile no CUDA code; these few lines do not.
if(TARGET stablemask_torch)
  return()
endif()
if(NOT STABLEMASK_TORCH_DIR)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_FOUND)
    execute_process(
      COMMAND ${Python3_EXECUTABLE} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE STABLEMASK_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
if(NOT EXISTS "${STABLEMASK_TORCH_DIR}/include/torch/csrc/api/include/torch/torch.h")
  message(FATAL_ERROR "LibTorch not found: set STABLEMASK_TORCH_DIR to the folder that has "
                      "lib/libtorch.so and include/ (scripts/setup.sh does it). Looked in '${STABLEMASK_TORCH_DIR}'")
endif()
add_library(stablemask_torch INTERFACE IMPORTED)
set_target_properties(stablemask_torch PROPERTIES
  INTERFACE_INCLUDE_DIRECTORIES
    "${STABLEMASK_TORCH_DIR}/include;${STABLEMASK_TORCH_DIR}/include/torch/csrc/api/include"
  INTERFACE_LINK_DIRECTORIES "${STABLEMASK_TORCH_DIR}/lib")
set(STABLEMASK_TORCH_LIBRARIES
  ${STABLEMASK_TORCH_DIR}/lib/libtorch_cpu.so ${STABLEMASK_TORCH_DIR}/lib/libc10.so)
if(STABLEMASK_CUDA)
  # Nothing refers to a symbol of libtorch_cuda; it registers the CUDA operators when loaded.
  list(APPEND STABLEMASK_TORCH_LIBRARIES
    -Wl,--no-as-needed ${STABLEMASK_TORCH_DIR}/lib/libtorch_cuda.so -Wl,--as-needed
    ${STABLEMASK_TORCH_DIR}/lib/libc10_cuda.so)
endif()
target_link_libraries(stablemask_torch INTERFACE ${STABLEMASK_TORCH_LIBRARIES})
# The Python package keeps its CUDA libraries beside torch/; a program that links cudart itself must
# load the same one.
file(GLOB STABLEMASK_TORCH_CUDA_DIRS "${STABLEMASK_TORCH_DIR}/../nvidia/cu[0-9]*/lib")
foreach(dir ${STABLEMASK_TORCH_CUDA_DIRS})
  file(REAL_PATH "${dir}" dir)
  target_link_options(stablemask_torch INTERFACE
    "$<$<NOT:$<BOOL:$<TARGET_PROPERTY:STABLEMASK_NO_RPATH>>>:LINKER:-rpath,${dir}>")
endforeach()
