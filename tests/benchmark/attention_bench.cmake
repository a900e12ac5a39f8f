# attention-bench is one of the tools, so builds without tests have it, too.
add_executable(attention-bench "${CMAKE_CURRENT_LIST_DIR}/attention_bench.cc"
                               "${CMAKE_CURRENT_LIST_DIR}/bench_case.cc")
target_link_libraries(attention-bench PRIVATE attention_compiler attention_kernels CLI11::CLI11
                                              nlohmann_json::nlohmann_json)
# Optional, because the quickstart does not build it.
target_compile_definitions(attention-bench PRIVATE ATTENTION_VERSION="${PROJECT_VERSION}")
install(TARGETS attention-bench RUNTIME COMPONENT tools OPTIONAL)
