//! `subprocess.run("exit 1", shell=True, check=True)` and `CalledProcessError`: a return code that isn't 0 is an error.

use polypool::ThreadPool;
use polypool::command::{Command, CommandError};

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::new()?;
    match Command::shell("echo so be it >&2; exit 1").capture().check().run_on(&pool).wait()? {
        Err(CommandError::Failed { output, .. }) => {
            println!("return code {:?}", output.status().and_then(|status| status.code()));
            print!("stderr: {}", output.stderr_text());
        }
        other => println!("{other:?}"),
    }
    Ok(())
}
