# STABLEMASK_NCCL_DIR: the folder of nccl.h, with which dist/nccl_group.cpp speaks to NCCL; not found:
# STABLEMASK_NCCL is false. A header alone: the library is the one that LibTorch loads.
find_path(STABLEMASK_NCCL_DIR nccl.h HINTS "${STABLEMASK_TORCH_DIR}/../nvidia/nccl/include")
set(version "")
if(STABLEMASK_NCCL_DIR)
  file(STRINGS "${STABLEMASK_NCCL_DIR}/nccl.h" lines REGEX "define NCCL_M[A-Z]+ [0-9]+")
  string(REGEX REPLACE "[^0-9]*([0-9]+);[^0-9]*([0-9]+)" "\\1.\\2" version "${lines}")
endif()
set(STABLEMASK_NCCL FALSE CACHE INTERNAL "Whether the build has NCCL")
# The first release that reads the limit of thread blocks from the communicator's configuration.
if(STABLEMASK_CUDA AND version VERSION_GREATER_EQUAL 2.17)
  set(STABLEMASK_NCCL TRUE CACHE INTERNAL "Whether the build has NCCL")
elseif(STABLEMASK_CUDA)
  message(STATUS "No nccl.h of NCCL 2.17 or newer (Python package nvidia-nccl-cu13, beside torch): one GPU "
                 "a run; STABLEMASK_NCCL_DIR names the folder of another one")
endif()
