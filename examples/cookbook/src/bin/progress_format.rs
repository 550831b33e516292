//! `tqdm(desc, total, unit, unit_scale, leave, bar_format)`: a bar in words of one's own, counted in bytes.
//!
//! A layout of one's own (`bar_format`, `ncols`, `colour`) is a template of `indicatif`, on which the bars stand.

use std::thread;
use std::time::Duration;

use futures_ext::{Progress, ProgressIteratorExt};

fn main() {
    let blocks = vec![vec![0_u8; 50_000]; 40];
    let total = blocks.iter().map(|block| block.len() as u64).sum();
    let progress = Progress::new().description("reading").total(total).unit("B").scaled(true).postfix("disk=sda");
    let mut blocks = blocks.into_iter().progress(progress).advance_by(|block| block.len() as u64);
    let bar = blocks.bar().clone();
    for _ in &mut blocks {
        thread::sleep(Duration::from_millis(5));
    }
    println!("{} of {} bytes", bar.position(), bar.total().unwrap_or(0));
}
