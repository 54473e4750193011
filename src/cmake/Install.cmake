# `cmake --install`: headers, the libraries of every layer, the binary, and the package files that
# make find_package(stablemask) define stablemask::stablemask and a target for each layer.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(STABLEMASK_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/stablemask)
set(STABLEMASK_LAYERS stablemask_base stablemask_config stablemask_data stablemask_loader
                      stablemask_continuation stablemask_io stablemask_ops stablemask_nn
                      stablemask_infer stablemask_interop stablemask_report
                      stablemask_dist stablemask_optim stablemask_train)

install(TARGETS stablemask ${STABLEMASK_LAYERS} EXPORT stablemask
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
set_target_properties(stablemask_binary PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
install(TARGETS stablemask_binary RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/stablemask DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h")

string(REPLACE "stablemask_" "" STABLEMASK_COMPONENTS "${STABLEMASK_LAYERS}")
string(REPLACE ";" ", " STABLEMASK_COMPONENTS "${STABLEMASK_COMPONENTS}")
install(EXPORT stablemask NAMESPACE stablemask:: FILE stablemaskTargets.cmake
  DESTINATION ${STABLEMASK_PACKAGE_DIR})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/stablemaskConfig.cmake.in
  ${PROJECT_BINARY_DIR}/stablemaskConfig.cmake INSTALL_DESTINATION ${STABLEMASK_PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/stablemaskConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/stablemaskConfig.cmake
  ${PROJECT_BINARY_DIR}/stablemaskConfigVersion.cmake
  ${CMAKE_CURRENT_LIST_DIR}/TorchTargets.cmake
  DESTINATION ${STABLEMASK_PACKAGE_DIR})
