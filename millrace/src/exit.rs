//! How the process ends: exit codes, and errors on one line.

use std::process::ExitCode;

/// The documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Done,
    /// 1: something failed, or some rows were refused.
    Failed,
    /// 2: the command line or a setting is wrong.
    Usage,
    /// 3: a check found something, or a gate refused.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        match exit {
            Exit::Done => ExitCode::SUCCESS,
            Exit::Failed => ExitCode::from(1),
            Exit::Usage => ExitCode::from(2),
            Exit::Refused => ExitCode::from(3),
        }
    }
}

/// An error and its causes on one line; a cause that its parent already says is left out.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once_and_on_one_line() {
        let error =
            anyhow::anyhow!("disk is full\nreally").context("cannot write x: disk is full\nreally").context("import");
        assert_eq!(one_line(&error), "import: cannot write x: disk is full really");
    }
}
