# Compiles files of a target together. Most of a compilation reads headers and instantiates what they declare: a
# first build takes half the time or less, and one after a change in one file several times as long. So it is for
# builds that are made once: tests/run.sh and deploy/quickstart.sh ask for it in a new build folder.
#
# Names in the unnamed namespaces of two files may be the same: such files go to different groups.
option(ATTENTION_UNITY "Compile files of a target together: for a build that is made once" OFF)
set(ATTENTION_UNITY_SIZE 10) # files; more would leave one of two cores without work at the end

# Sets OUT to the names that the unnamed namespaces of a file declare. Code is formatted: they stand at the start
# of a line.
function(attention_local_names out file)
  file(READ "${file}" text)
  # Lists of CMake are split at semicolons, but not inside brackets.
  string(REPLACE "[[noreturn]] " "" text "${text}")
  string(REPLACE ";" "@" text "${text}")
  string(REGEX REPLACE "[][]" "(" text "${text}")
  # Keeps the part of a line before a bracket, a value or a body.
  string(REGEX REPLACE "\n(class|struct|enum class|enum) ([A-Za-z0-9_]+)[^\n]*" "\n\\1 \\2{" text "${text}")
  string(REGEX REPLACE " ?([(={@])[^\n]*" "\\1" text "${text}")
  string(REPLACE "\nnamespace{" ";" parts "${text}")
  list(REMOVE_AT parts 0)
  set(names "")
  foreach(part IN LISTS parts)
    string(REGEX REPLACE "\n}  // namespace\n.*" "\n" part "${part}")
    string(REGEX MATCHALL "\n[A-Za-z][A-Za-z0-9_:<>,&* ]*[ &*][A-Za-z0-9_]+[(={@]" lines "${part}")
    list(TRANSFORM lines REPLACE "^.*[ &*]([A-Za-z0-9_]+).$" "\\1")
    list(APPEND names ${lines})
  endforeach()
  set(${out} "${names}" PARENT_SCOPE)
endfunction()

# Sets OUT to the first group, counted from 0, that has room for a file with these names.
function(attention_unity_group out names)
  set(group 0)
  while(TRUE)
    set(others ${group_names_${group}})
    list(LENGTH group_files_${group} count)
    set(common "")
    foreach(name IN LISTS names)
      if(name IN_LIST others)
        list(APPEND common ${name})
      endif()
    endforeach()
    if(NOT common AND count LESS ATTENTION_UNITY_SIZE)
      break()
    endif()
    math(EXPR group "${group} + 1")
  endwhile()
  set(${out} ${group} PARENT_SCOPE)
endfunction()

function(attention_unity target)
  get_target_property(unity ${target} UNITY_BUILD)
  get_target_property(type ${target} TYPE)
  get_target_property(sources ${target} SOURCES)
  get_target_property(folder ${target} SOURCE_DIR)
  if(unity STREQUAL "OFF" OR type MATCHES "INTERFACE|UTILITY" OR NOT sources)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  list(FILTER sources INCLUDE REGEX "\\.cc$")
  foreach(source IN LISTS sources)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${folder}" OUTPUT_VARIABLE file)
    attention_local_names(names "${file}")
    attention_unity_group(group "${names}")
    list(APPEND group_names_${group} ${names})
    list(APPEND group_files_${group} "${source}")
    set_source_files_properties("${file}" TARGET_DIRECTORY ${target}
                                PROPERTIES UNITY_GROUP "${target}_${group}")
  endforeach()
endfunction()

function(attention_unity_below folder)
  get_property(targets DIRECTORY "${folder}" PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    attention_unity(${target})
  endforeach()
  get_property(folders DIRECTORY "${folder}" PROPERTY SUBDIRECTORIES)
  foreach(below IN LISTS folders)
    attention_unity_below("${below}")
  endforeach()
endfunction()

if(ATTENTION_UNITY)
  attention_unity_below("${CMAKE_SOURCE_DIR}")
endif()
