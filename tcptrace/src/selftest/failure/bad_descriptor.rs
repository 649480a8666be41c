//! Bad file descriptor: a socket used after its close, and a call for sockets on what is none.

use super::{Expect, Failure, actor};

pub(super) const FAILURE: Failure = Failure {
    name: "use_after_close",
    symptom: "sendto: bad file descriptor",
    changes_host: false,
    provoke: |_| {
        let mut program = actor("confused")?;
        let fd = program.socket(libc::AF_INET, 0)?;
        program.close(fd)?;
        program
            .send(fd, b"late")
            .expect_err("the descriptor is closed");
        program.recv(0, 16).expect_err("stdin is a pipe");
        Ok(vec![
            Expect::new("fd.invalid", "sendto on a closed descriptor")
                .with("tcptrace.syscall.name", "sendto")
                .owner(&program)
                .says("tcptrace.socket.fd", fd)
                .says("error.type", "EBADF"),
            Expect::new("fd.invalid", "recvfrom on a pipe")
                .with("tcptrace.syscall.name", "recvfrom")
                .owner(&program)
                .says("tcptrace.socket.fd", 0)
                .says("error.type", "ENOTSOCK"),
        ])
    },
};
