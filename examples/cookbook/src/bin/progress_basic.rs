//! `tqdm(range(100))`: a progress bar over an iterator, on standard error, if that is a terminal.

use std::thread;
use std::time::Duration;

use futures_ext::{Progress, ProgressIteratorExt};

fn main() {
    let mut sum = 0;
    for n in (0..100_u64).progress(Progress::new()) {
        thread::sleep(Duration::from_millis(2));
        sum += n;
    }
    println!("sum: {sum}");
}
