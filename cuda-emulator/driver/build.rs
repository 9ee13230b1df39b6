//! Gives the library the name under which programs look for the CUDA driver: one that is loaded
//! by its path is then found by them.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
