//! `#[task]` and `#[main]` as a program sees them: what they accept must work, what they refuse must say what to write
//! instead.
//!
//! The texts beside the files in `ui/fail` are what a newcomer reads. After a change of wording, write them anew with
//! `TRYBUILD=overwrite cargo test -p polypool --test macros`, and read every one. Those of the compiler itself, in the
//! files called `rustc_*`, change with its version.

#[test]
fn accepted_functions_work() {
    trybuild::TestCases::new().pass("tests/ui/pass/*.rs");
}

#[test]
fn refused_functions_say_what_to_write_instead() {
    trybuild::TestCases::new().compile_fail("tests/ui/fail/*.rs");
}
