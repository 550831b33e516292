#[polypool::task]
struct Resize {
    width: u32,
}

#[polypool::task]
const RESIZE: fn(u32) -> u32 = |width| width / 2;

#[polypool::task]
mod tasks {
    pub fn resize(width: u32) -> u32 {
        width / 2
    }
}

trait Resizes {
    #[polypool::task]
    fn resize(width: u32) -> u32;
}

#[polypool::task]
impl Resize {
    fn resize() {}
}

fn main() {}
