trait Shape {}

#[polypool::task]
fn of_any_shape(shape: dyn Shape + Send) {}

#[polypool::task]
fn of_a_text(text: str) {}

#[polypool::task]
fn of_a_slice(list: [u64]) {}

fn main() {}
