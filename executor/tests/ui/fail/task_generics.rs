#[polypool::task]
fn of_a_type<T>(value: T) -> T {
    value
}

#[polypool::task]
fn of_a_number<const N: usize>(values: [u8; N]) -> usize {
    values.len()
}

#[polypool::task]
fn of_a_lifetime<'a>(text: &'a str) -> &'a str {
    text
}

#[polypool::task]
fn with_bounds(n: u8) -> u8
where
    u8: Copy,
{
    n
}

fn main() {}
