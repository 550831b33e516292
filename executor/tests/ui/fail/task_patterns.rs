struct Point {
    x: u8,
    y: u8,
}

#[polypool::task]
fn taken_apart((a, b): (u8, u8), Point { x, y }: Point, [first, ..]: [u8; 3], _: u8) -> u8 {
    a + b + x + y + first
}

#[polypool::task]
fn borrowed(ref text: String, all @ _: u8) -> usize {
    text.len() + usize::from(all)
}

fn main() {}
