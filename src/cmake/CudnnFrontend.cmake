# STABLEMASK_CUDNN_GRAPH_INCLUDES: folders of the headers with which cuda/cudnn_attention.cpp speaks
# to cuDNN's graph API, empty when they are not all there. Headers alone: the library is the one that
# LibTorch loads.
find_path(STABLEMASK_CUDNN_FRONTEND_DIR cudnn_frontend.h
  HINTS "${STABLEMASK_TORCH_DIR}/../include" "${STABLEMASK_TORCH_DIR}/../../../../include")
find_path(STABLEMASK_CUDNN_DIR cudnn_graph.h HINTS "${STABLEMASK_TORCH_DIR}/../nvidia/cudnn/include")
if(NOT STABLEMASK_CUDNN_DIR)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c "import nvidia.cudnn as c; print(c.__path__[0])"
    OUTPUT_VARIABLE STABLEMASK_CUDNN_PACKAGE OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(STABLEMASK_CUDNN_DIR cudnn_graph.h HINTS "${STABLEMASK_CUDNN_PACKAGE}/include")
endif()

set(STABLEMASK_CUDNN_GRAPH_INCLUDES)
set(version "")
if(STABLEMASK_CUDNN_FRONTEND_DIR AND STABLEMASK_CUDNN_DIR)
  file(STRINGS "${STABLEMASK_CUDNN_FRONTEND_DIR}/cudnn_frontend_version.h" lines
    REGEX "define CUDNN_FRONTEND_M[A-Z]+_VERSION [0-9]+")
  string(REGEX REPLACE "[^0-9]*([0-9]+);[^0-9]*([0-9]+)" "\\1.\\2" version "${lines}")
endif()
# The launch reads parts of the library that other releases may arrange differently.
if(version VERSION_EQUAL 1.23)
  set(STABLEMASK_CUDNN_GRAPH_INCLUDES
    "${STABLEMASK_CUDNN_FRONTEND_DIR}" "${STABLEMASK_CUDNN_DIR}")
else()
  message(STATUS "No headers of cudnn-frontend 1.23 (Python package nvidia-cudnn-frontend==1.23.0) "
                 "and cuDNN 9: attention takes LibTorch's operators")
endif()
