//! What happens in many stories, from a request to its answer or from the first scene to the danger.

use super::Stage;

impl Stage {
    /// A stage with `peers`, on which A owns a session of A, B and C in which there is tea.
    pub(crate) fn with_tea(title: &str, peers: &str) -> Self {
        let mut s = Self::new(title, peers);
        s.draws("A", "A B C");
        s.asks("A", "change tea", "A");
        s.settles();
        s
    }

    /// A client asks for `request` at `entry`, which has `executor` run it; nothing is lost on the
    /// way, and the answer is `answer`.
    #[track_caller]
    pub(crate) fn gets(&mut self, entry: &str, request: &str, executor: &str, answer: &str) {
        self.asks(entry, request, executor);
        self.settles();
        self.answered(name_of(request), answer);
    }

    /// The owner has `executor` run a request, and gets the result with the executor's vote. It has not
    /// asked another member for its vote yet.
    #[track_caller]
    pub(crate) fn has_it_run(&mut self, owner: &str, request: &str, executor: &str) {
        self.asks(owner, request, executor);
        self.arrives(&format!("Exec {owner}>{executor}"));
        self.ends(name_of(request));
        self.arrives(&format!("ExecDone {executor}>{owner}"));
    }

    /// A is cut off, and B takes the session over: C adds milk to the tea, which A does not hear of.
    #[track_caller]
    pub(crate) fn goes_on_without_a(&mut self) {
        self.parts("A", "B C");
        self.takes_over("B");
        self.settles();
        self.gets("B", "change milk", "C", "tea/A milk/C");
    }
}

/// The name of a request such as `change tea`.
fn name_of(request: &str) -> &str {
    request.rsplit(' ').next().unwrap_or(request)
}
