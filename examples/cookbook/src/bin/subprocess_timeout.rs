//! `subprocess.run(["sleep", "60"], timeout=...)` and `TimeoutExpired`: a command that takes too long is killed.
//!
//! So is what it has started: the whole process group. Python kills the command alone, and then waits for whoever has
//! inherited its output.

use std::time::Duration;

use polypool::ThreadPool;
use polypool::command::{Command, CommandError};

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::new()?;
    let sleep = Command::shell("sleep 60 & sleep 60").capture().timeout(Duration::from_millis(100));
    match sleep.run_on(&pool).wait()? {
        Err(CommandError::TimedOut { after, .. }) => println!("timed out after {after:?}"),
        other => println!("{other:?}"),
    }
    Ok(())
}
