# Compiler settings of our own targets, carried by the interface target attention_compiler.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(ATTENTION_CCACHE ccache)
if(ATTENTION_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${ATTENTION_CCACHE}")
endif()

add_library(attention_compiler INTERFACE)
target_include_directories(attention_compiler INTERFACE "${CMAKE_SOURCE_DIR}")
# nvcc has none of these.
target_compile_options(attention_compiler INTERFACE
                       "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror=return-type>")
option(ATTENTION_WERROR "Warnings of the C++ compiler are errors" OFF)
if(ATTENTION_WERROR)
  # Not those that g++ draws from optimised code, where version 12 is wrong about std::string, nor what only files
  # compiled together have (AttentionUnity.cmake).
  set(doubtful array-bounds dangling-pointer free-nonheap-object maybe-uninitialized mismatched-new-delete nonnull
               restrict stringop-overflow stringop-overread stringop-truncation uninitialized use-after-free
               subobject-linkage invalid-pch)
  list(TRANSFORM doubtful PREPEND "-Wno-error=")
  target_compile_options(attention_compiler INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Werror;${doubtful}>")
endif()

if(ATTENTION_SANITIZE)
  add_compile_options(-fsanitize=${ATTENTION_SANITIZE} -fno-omit-frame-pointer -g1)
  if(ATTENTION_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
  add_link_options(-fsanitize=${ATTENTION_SANITIZE})
endif()
