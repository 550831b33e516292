//! x
fn main() -> std::process::ExitCode {
    integration_tests::Suite::new("threads").run()
}
