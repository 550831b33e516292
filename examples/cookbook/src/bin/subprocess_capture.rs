//! `subprocess.run(["ls", "-l"], capture_output=True)`: a command whose output is captured.
//!
//! For a command alone, `std::process::Command` and `tokio::process::Command` are enough. This one is a task like any
//! other: it can be cancelled, waited for with others, and takes its process group along.

use polypool::ThreadPool;
use polypool::command::Command;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::new()?;
    let ls = Command::new("ls").arg("-l").current_dir(env!("CARGO_MANIFEST_DIR")).capture();
    let output = ls.run_on(&pool).wait()??;
    println!("return code {:?}", output.status().and_then(|status| status.code()));
    print!("{}", output.stdout_text());
    Ok(())
}
