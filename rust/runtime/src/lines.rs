//! What tasks print, line by line.

/// Text that a worker wrote.
pub struct Output {
    pub error_stream: bool,
    pub text: Vec<u8>,
    /// It is a pickled log record, not text.
    pub log: bool,
}

/// Output cut into whole lines, so that those of several workers do not mix.
#[derive(Default)]
pub(crate) struct Lines {
    partial: [Vec<u8>; 2],
}

impl Lines {
    pub(crate) fn push(&mut self, error_stream: bool, text: &[u8], out: &dyn Fn(Output)) {
        let partial = &mut self.partial[usize::from(error_stream)];
        partial.extend_from_slice(text);
        if let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') {
            let rest = partial.split_off(end + 1);
            let text = std::mem::replace(partial, rest);
            out(Output { error_stream, text, log: false });
        }
    }

    pub(crate) fn flush(&mut self, out: &dyn Fn(Output)) {
        for (error_stream, partial) in [false, true].into_iter().zip(&mut self.partial) {
            if !partial.is_empty() {
                out(Output { error_stream, text: std::mem::take(partial), log: false });
            }
        }
    }
}
