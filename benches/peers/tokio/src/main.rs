//! Reads 50-byte frames and answers each with 28 bytes: one task per connection, nothing else.
//!
//! The runtime is the one for a single core: a pool of one worker would only add a hand-over between threads.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const FRAME_LEN: usize = 50;
const REPLY_LEN: usize = 28;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| io::Error::other("usage: peer-tokio PORT"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream));
        }
    })
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut frame = [0; FRAME_LEN];
    // Magic and length: the load tells frames apart.
    let mut reply = [0; REPLY_LEN];
    reply[..4].copy_from_slice(&[0xFC, 0xFF, 0x00, 0x18]);
    loop {
        stream.read_exact(&mut frame).await?;
        stream.write_all(&reply).await?;
    }
}
