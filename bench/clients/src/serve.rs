//! A server that costs little: a thread a connection, always the same answer.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

/// Bytes of a body.
pub const BODY: usize = 500;

/// Prints the address and answers until it is killed.
pub fn serve() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nserver: stand-in\r\ndate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\
         content-type: application/json\r\ncontent-length: {BODY}\r\n\r\n{}",
        "x".repeat(BODY)
    );
    for socket in listener.incoming() {
        let (socket, answer) = (socket?, answer.clone());
        std::thread::spawn(move || answer_all(socket, answer.as_bytes()));
    }
    Ok(())
}

fn answer_all(mut socket: TcpStream, answer: &[u8]) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut buffer, mut filled) = ([0; 4096], 0);
    loop {
        // Nobody asks for the next before this one is answered, so a head's end is the end of what came.
        while !buffer[..filled].ends_with(b"\r\n\r\n") {
            match socket.read(&mut buffer[filled..])? {
                0 => return Ok(()),
                read => filled += read,
            }
        }
        filled = 0;
        socket.write_all(answer)?;
    }
}
