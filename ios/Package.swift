// swift-tools-version: 5.9
import Foundation
import PackageDescription

// On a Mac the library comes as an XCFramework, made by ./build-xcframework. Elsewhere (our checks run on Linux) the
// archive that cargo built for the host is linked: SECATEUR_LIB is the folder that holds libsecateur_ffi.a.
#if os(Linux)
let folder = ProcessInfo.processInfo.environment["SECATEUR_LIB"] ?? "../target/release"
let native: Target = .systemLibrary(name: "CSecateur")
let linking: [LinkerSetting] = [.unsafeFlags(["-L\(folder)"])]
#else
let native: Target = .binaryTarget(name: "CSecateur", path: "Secateur.xcframework")
let linking: [LinkerSetting] = []
#endif

let package = Package(
    name: "Secateur",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "Secateur", targets: ["Secateur"])],
    targets: [
        native,
        .target(
            name: "Secateur",
            dependencies: ["CSecateur"],
            resources: [.copy("PrivacyInfo.xcprivacy")],
            linkerSettings: linking
        ),
        .testTarget(name: "SecateurTests", dependencies: ["Secateur"]),
    ]
)
