//! Has the program's relocations packed where it is built for the machine at hand: a megabyte of memory less. In their
//! usual form the loader reads them at the start, and what it has read stays.
//!
//! Only the loader of glibc from 2.36 on knows the packed form, so this is done if the program is built on the kind of
//! system that it is for, and that system has such a glibc. On an older one (Ubuntu 22.04, RHEL 9) the program wouldn't
//! start: the loader says that it lacks `GLIBC_ABI_DT_RELR`. Whoever builds here for machines that are older sets
//! `FETCH_BUILD_PORTABLE=1`.

use std::env;
use std::process::Command;

const PORTABLE: &str = "FETCH_BUILD_PORTABLE";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={PORTABLE}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|is| is == value);
    let is_here = env::var("HOST").is_ok_and(|host| is("TARGET", &host));
    let is_glibc = is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu");
    let may_travel = env::var_os(PORTABLE).is_some_and(|value| !value.is_empty());
    if is_here && is_glibc && !may_travel && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of that of this machine.
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
