# cmake -DBUILD=… -DSOURCE=… -DTORCH=… -DGENERATOR=… -DCHECKPOINT=… -P run.cmake: installs BUILD into
# an empty folder, builds the programs beside this file against it, and runs them. The program in
# infer/ continues a text with CHECKPOINT when that folder exists.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "failed (${status}): ${ARGN}\n${output}")
  endif()
endfunction()

set(work ${BUILD}/consumer_install)

# build(NAME OPTIONS…) makes ${work}/NAME/consumer.
function(build name)
  run(${CMAKE_COMMAND} -S ${SOURCE}/${name} -B ${work}/${name} -G ${GENERATOR}
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=${work}/prefix -DSTABLEMASK_TORCH_DIR=${TORCH}
    ${ARGN})
  run(${CMAKE_COMMAND} --build ${work}/${name})
endfunction()

file(REMOVE_RECURSE ${work})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${work}/prefix)
run(${work}/prefix/bin/stablemask --help)
set(without_json -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)

# The operators need neither SentencePiece, which pkg-config finds, nor JSON.
build(ops ${without_json} -DCMAKE_DISABLE_FIND_PACKAGE_PkgConfig=ON)
run(${work}/ops/consumer)

# Inference links neither the trainer nor the loader.
build(infer ${without_json})
execute_process(COMMAND nm -C ${work}/infer/consumer OUTPUT_VARIABLE symbols RESULT_VARIABLE status)
if(NOT status EQUAL 0 OR NOT symbols MATCHES "stablemask::load_model")
  message(FATAL_ERROR "nm cannot list the symbols of ${work}/infer/consumer")
endif()
string(REGEX MATCH "[^\n]*stablemask::(Trainer|Loader)::[^\n]*" unwanted "${symbols}")
if(unwanted)
  message(FATAL_ERROR "a program that links stablemask::infer holds: ${unwanted}")
endif()
execute_process(COMMAND ${work}/infer/consumer ${work}/nowhere text RESULT_VARIABLE status
                ERROR_VARIABLE output)
if(NOT status EQUAL 4 OR NOT output MATCHES "nowhere")
  message(FATAL_ERROR "a missing checkpoint gave status ${status}, not 4: ${output}")
endif()
if(EXISTS "${CHECKPOINT}")
  run(${work}/infer/consumer ${CHECKPOINT} "The river")
endif()

build(all ${without_json})
run(${work}/all/consumer)
file(REMOVE_RECURSE ${work})
