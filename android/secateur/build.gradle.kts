plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "dev.secateur"
    compileSdk = libs.versions.compile.sdk.get().toInt()
    ndkVersion = libs.versions.ndk.get()

    defaultConfig {
        minSdk = libs.versions.min.sdk.get().toInt()
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }

    sourceSets.named("main") {
        // `core` knows nothing of Android: the desktop JVM compiles and runs it in our checks.
        kotlin.srcDirs("src/core/kotlin", "src/main/kotlin")
        jniLibs.srcDirs(layout.buildDirectory.dir("jniLibs"))
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin { jvmToolchain(17) }

dependencies {
    api(libs.coroutines.core)
    implementation(libs.coroutines.android)
    implementation(libs.androidx.core)
}

/** Builds `libsecateur_ffi.so` for each ABI with cargo-ndk, which finds the NDK by ANDROID_NDK_HOME. */
val cargoNdk by tasks.registering(Exec::class) {
    val out = layout.buildDirectory.dir("jniLibs")
    inputs.dir(rootDir.resolve("../crates"))
    inputs.file(rootDir.resolve("../Cargo.lock"))
    outputs.dir(out)
    workingDir = rootDir.resolve("..")
    commandLine(
        "cargo", "ndk", "--target", "arm64-v8a", "--target", "x86_64", "--platform", libs.versions.min.sdk.get(),
        "--output-dir", out.get().asFile.path, "build", "--release", "--locked", "-p", "secateur-ffi",
    )
}

tasks.named("preBuild") { dependsOn(cargoNdk) }
