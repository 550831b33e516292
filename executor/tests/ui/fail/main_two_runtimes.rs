#[polypool::main]
#[tokio::main]
async fn main() {}
