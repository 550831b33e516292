//! `subprocess.run(["sort"], input=..., env=..., text=True)`: a command that is given its standard input.

use polypool::ThreadPool;
use polypool::command::Command;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::new()?;
    let sort = Command::new("sort").arg("--reverse").env("LC_ALL", "C").input("b\nc\na\n").capture().check();
    print!("{}", sort.run_on(&pool).wait()??.stdout_text());
    Ok(())
}
