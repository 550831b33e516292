//! Two `subprocess.Popen` joined by a pipe: `ls | grep toml`.

use polypool::ThreadPool;
use polypool::command::Command;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::new()?;
    let ls = Command::new("ls").current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = ls.pipe(Command::new("grep").arg("toml")).capture().run_on(&pool).wait()??;
    print!("{}", output.stdout_text());
    Ok(())
}
