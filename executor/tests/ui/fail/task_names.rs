#[polypool::task]
fn u64(text: String) -> Option<usize> {
    text.parse().ok()
}

#[polypool::task]
fn twice(n: u8, m: u8, n: u8) -> u8 {
    n + m
}

fn main() {}
