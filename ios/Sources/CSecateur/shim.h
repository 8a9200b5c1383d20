// The header lies with the library; this is for builds on Linux. The XCFramework brings a copy of its own.
#include "../../../crates/ffi/include/secateur.h"
