# attention_room(NAME DEPENDS target...) makes one static library from every .cc file of the current
# folder's sub-folder NAME (not deeper): a room is a folder, and its dependencies are exactly the
# rooms it may include (tests/lint/check_includes.py holds the same table).
function(attention_room target folder)
  cmake_parse_arguments(ROOM "" "" "DEPENDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cc")
  if(sources)
    add_library(${target} STATIC ${sources})
    target_link_libraries(${target} PUBLIC $<BUILD_INTERFACE:attention_compiler> ${ROOM_DEPENDS})
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE attention_compiler ${ROOM_DEPENDS})
  endif()
endfunction()
