# A toolchain file: Clang, libc++ and the libc of HOGWILD_ZIG_TARGET (e.g. aarch64-linux-musl), all from zig, so that
# one Linux machine builds for the others. HOGWILD_ZIG is the zig program.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES HOGWILD_ZIG HOGWILD_ZIG_TARGET)
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${HOGWILD_ZIG_TARGET}")
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER "${HOGWILD_ZIG}" cc -target ${HOGWILD_ZIG_TARGET})
set(CMAKE_CXX_COMPILER "${HOGWILD_ZIG}" c++ -target ${HOGWILD_ZIG_TARGET})
# Else zig's own choices: the undefined behaviour sanitizer, and DWARF.
add_compile_options(-fno-sanitize=undefined -g0)
add_link_options(-s)
set(CMAKE_CXX_ARCHIVE_CREATE "\"${HOGWILD_ZIG}\" ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "\"${HOGWILD_ZIG}\" ar q <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "\"${HOGWILD_ZIG}\" ranlib <TARGET>")
