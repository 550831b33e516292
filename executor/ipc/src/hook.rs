//! Code that runs before `main`: how a test binary becomes a worker.
//!
//! A worker is the same binary, started again. In a program, `main` can look whether it is a worker; in a test binary
//! `main` belongs to the test harness, which would run every test again in every worker. So the look must happen
//! earlier, when the system's loader calls the initialisers of the binary.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::abort;

/// Registers a `fn()` to run before `main`. **For test binaries only.**
///
/// std promises nothing about code that runs before `main`: the arguments may be empty (musl), SIGPIPE is at its
/// default, the main thread has no name, and static constructors of C++ may not have run. A program has a `main` to put
/// its code in; only where that belongs to somebody else, as under the test harness, there is no other way. The
/// function should look at one environment variable, return at once if it isn't set, and otherwise do its work on a
/// thread of its own and exit.
///
/// Put it into the test binary itself: a linker may drop it from a library of which nothing else is used. It works in
/// crates that forbid `unsafe`. A panic in the function ends the process with a message, since there is nobody to catch
/// it.
///
/// # Examples
///
/// ```
/// #![forbid(unsafe_code)]
///
/// fn become_worker() {
///     if std::env::var_os("SOME_WORKER_VARIABLE").is_some() {
///         std::process::exit(0);
///     }
/// }
///
/// polypool_ipc::before_main!(become_worker);
/// # fn main() {}
/// ```
///
/// # Why it is safe
///
/// The loader calls every entry of this section once, on the only thread, as an `extern "C"` function, which the entry
/// is. Its arguments, which the loader may or may not pass, are not looked at.
#[macro_export]
macro_rules! before_main {
    ($function:path) => {
        const _: () = {
            extern "C" fn hook() {
                $crate::__run_before_main($function);
            }

            // SAFETY: the section holds an array of pointers to such functions, and this is one.
            #[used]
            #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
            #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
            static HOOK: extern "C" fn() = hook;
        };
    };
}

/// Runs a hook, and lets no panic out of it.
#[doc(hidden)]
pub fn run(function: fn()) {
    if catch_unwind(AssertUnwindSafe(function)).is_err() {
        // The panic's own message has been printed. Not `eprintln!`, which panics if standard error is closed.
        let _ = std::io::stderr().write_all(b"polypool: a function registered by before_main! panicked; aborting\n");
        abort();
    }
}
