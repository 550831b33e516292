//! `subprocess.Popen`: `pid`, `poll`, `communicate`, `wait`, `kill` are those of `std::process::Child`.

use std::io::Write;
use std::process::{Command, Stdio};

fn main() -> std::io::Result<()> {
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    println!("poll: {:?}", cat.try_wait()?);
    if let Some(mut stdin) = cat.stdin.take() {
        stdin.write_all(b"hello\n")?; // and closed at the end of the block
    }
    let output = cat.wait_with_output()?;
    print!("communicate: {}", String::from_utf8_lossy(&output.stdout));
    println!("return code {:?}", output.status.code());

    let mut sleep = Command::new("sleep").arg("60").spawn()?;
    sleep.kill()?;
    println!("killed, return code {:?}", sleep.wait()?.code());
    Ok(())
}
