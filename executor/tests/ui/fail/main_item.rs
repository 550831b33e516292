#[polypool::main]
struct Program;

fn main() {}
