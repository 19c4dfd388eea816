# Links the addon for an older glibc than this system's: HOGWILD_GLIBC, e.g. 2.28. Everything is compiled by the
# system's compilers (nvcc takes no libc++), and linked by zig (HOGWILD_ZIG) against the symbols of that glibc.
#
# libgcc's unwinder comes from libgcc_s.so.1, which every system with Node.js has: the static one needs glibc 2.35.
foreach(library libstdc++.a libgcc.a libgcc_s.so.1)
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${library}
                  OUTPUT_VARIABLE file OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT IS_ABSOLUTE "${file}")
    message(FATAL_ERROR "HOGWILD_GLIBC: ${CMAKE_CXX_COMPILER} has no ${library}")
  endif()
  list(APPEND system_libraries "\"${file}\"")
endforeach()
list(JOIN system_libraries " " system_libraries)

# A variable of glibc 2.32 that libstdc++ reads: 0 says that there may be threads, always.
file(WRITE ${CMAKE_BINARY_DIR}/glibc.cc "extern \"C\" char __libc_single_threaded = 0;\n")

set(CMAKE_CXX_CREATE_SHARED_MODULE
    "\"${HOGWILD_ZIG}\" cc -target ${CMAKE_SYSTEM_PROCESSOR}-linux-gnu.${HOGWILD_GLIBC} -shared -nostdlib++ -s -Wno-unused-command-line-argument \
<LINK_FLAGS> -o <TARGET> <OBJECTS> <LINK_LIBRARIES> ${system_libraries} -lpthread -ldl -lrt -lm")
