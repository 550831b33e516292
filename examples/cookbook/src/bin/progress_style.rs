//! `tqdm(ncols, colour, bar_format, position, initial, mininterval)`: two bars at a time, drawn in one's own way.
//!
//! That is `indicatif`, on which `.progress()` stands: a template for the looks, `MultiProgress` for the lines.

use std::thread;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

fn main() -> anyhow::Result<()> {
    let lines = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(50)); // `mininterval`
    let style = ProgressStyle::with_template("{prefix} {bar:30.green} {percent}% {pos}/{len}")?;
    let add = |name, total| lines.add(ProgressBar::new(total).with_style(style.clone()).with_prefix(name));
    let (epochs, steps) = (add("epochs", 2), add("steps", 100));
    steps.set_position(50); // `initial`: half of it was done before
    for _ in 0..2 {
        for _ in 0..25 {
            thread::sleep(Duration::from_millis(2));
            steps.inc(1); // `update`
        }
        epochs.inc(1);
    }
    steps.finish(); // `leave=True`
    epochs.finish();
    println!("{} epochs, {} steps", epochs.position(), steps.position());
    Ok(())
}
