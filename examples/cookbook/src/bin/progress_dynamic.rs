//! `tqdm.set_description`, `set_postfix` and `write`: a bar whose texts change as it goes.

use std::thread;
use std::time::Duration;

use futures_ext::{Progress, ProgressIteratorExt};

fn main() {
    let mut steps = (1..=50).progress(Progress::new().unit("step"));
    let bar = steps.bar().clone();
    let mut loss = 1.0;
    for step in &mut steps {
        loss *= 0.95;
        bar.set_description(if step <= 25 { "warming up" } else { "training" });
        bar.set_postfix(format!("loss={loss:.3}"));
        thread::sleep(Duration::from_millis(4));
        if step % 25 == 0 {
            bar.suspend(|| println!("step {step}: loss {loss:.3}")); // above the bar
        }
    }
    println!("{} of {} steps", bar.position(), bar.total().unwrap_or(0));
}
