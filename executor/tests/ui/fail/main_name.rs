#[polypool::main]
async fn start() {}

fn main() {}
