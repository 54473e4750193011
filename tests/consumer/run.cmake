# cmake -DBUILD=… -DSOURCE=… -DTORCH=… -DGENERATOR=… -P run.cmake: installs BUILD into an empty
# folder, builds the program beside this file against it, runs both.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "failed (${status}): ${ARGN}\n${output}")
  endif()
endfunction()

set(work ${BUILD}/consumer_install)
file(REMOVE_RECURSE ${work})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE} -B ${work}/build -G ${GENERATOR} -DCMAKE_BUILD_TYPE=Release
  -DCMAKE_PREFIX_PATH=${work}/prefix -DSTABLEMASK_TORCH_DIR=${TORCH})
run(${CMAKE_COMMAND} --build ${work}/build)
run(${work}/build/consumer)
run(${work}/prefix/bin/stablemask --help)
file(REMOVE_RECURSE ${work})
