//! The least a server can do: wait, read, write.
//!
//! Edge-triggered, because a level-triggered socket stays on epoll's ready list until the next wait has found it empty.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsRawFd, RawFd},
};

use crate::load::{FRAME_LEN, REPLY_LEN};

const EVENTS: usize = 1024;

/// Serves on `port` until killed.
pub(crate) fn run(port: u16) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    // SAFETY: plain system calls on descriptors and buffers that live until the end of the loop.
    unsafe {
        check(libc::listen(listener.as_raw_fd(), 4096))?;
        let epoll = check(libc::epoll_create1(0))?;
        add(epoll, listener.as_raw_fd(), libc::EPOLLIN)?;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let mut frame = [0_u8; FRAME_LEN];
        // Magic and length: the load tells frames apart.
        let mut reply = [0_u8; REPLY_LEN];
        reply[..4].copy_from_slice(&[0xFC, 0xFF, 0x00, 0x18]);
        loop {
            let count = libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS as i32, -1);
            for event in &events[..usize::try_from(count).unwrap_or(0)] {
                let fd = event.u64 as RawFd;
                if fd == listener.as_raw_fd() {
                    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
                    let peer = check(libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
                    let on: libc::c_int = 1;
                    check(libc::setsockopt(peer, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), 4))?;
                    add(epoll, peer, libc::EPOLLIN | libc::EPOLLET)?;
                } else if libc::recv(fd, frame.as_mut_ptr().cast(), FRAME_LEN, 0) <= 0 {
                    libc::close(fd);
                } else {
                    libc::send(fd, reply.as_ptr().cast(), REPLY_LEN, libc::MSG_NOSIGNAL);
                }
            }
        }
    }
}

unsafe fn add(epoll: RawFd, fd: RawFd, interest: i32) -> io::Result<()> {
    let mut event = libc::epoll_event { events: interest as u32, u64: fd as u64 };
    // SAFETY: the caller owns both descriptors, and the event is copied.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
