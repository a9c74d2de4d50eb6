/* The protocol of pidabs/_queue.py and _handover.py, for spin.  docs/model.md says what is left out and why that is sound.
 *
 * N processes want one lock.  Each rule below is one atomic step: one system call, or one look of a process at what it
 * holds in its hands.  The comment names the function of pidabs that does it.  Between any two steps a process can be
 * killed, stopped and continued, give up, or fork.  check.py runs this with the numbers below set, and again with each
 * BREAK_..., which breaks one rule on purpose.
 *
 * No step is taken in vain: who polls in the code (a refused waiter) waits here until the next look would differ.  So
 * a state without a next step is one in which all sleep for ever, which Monitor looks at, and an endless run is a
 * livelock, which `pan -l` finds.
 */
#ifndef N
#define N 3 /* processes */
#endif
#ifndef ROUNDS
#define ROUNDS 1 /* times that each takes the lock */
#endif
#ifndef CRASHES
#define CRASHES 0 /* kills, among all */
#endif
#ifndef STOPS
#define STOPS 0 /* a stopped process is also one that is too slow; with FROZEN nobody is continued */
#endif
#ifndef GIVEUPS
#define GIVEUPS 0 /* waits that end by a timeout or are cancelled */
#endif
#ifndef FORKS
#define FORKS 0 /* forks whose child has copies of everything until its hook has closed them */
#endif
#ifndef MOVES
#define MOVES 0 /* forks inside across_fork; process N - 1 is the child */
#endif
#ifndef ROOM
#define ROOM (N + GIVEUPS + CRASHES) /* of the backlog; 0 is also Landlock, where nobody can queue */
#endif
#define NOBODY 255 /* in the backlog: an entry whose waiter is gone */

mtype = {
  BIND, LISTEN, REFUSED, JOIN, SAY_W, ASLEEP, ANSWER, AWAKE, LAST_READ, LAST_CLOSE, HELD, /* a waiter */
  RELEASE, ACCEPT, OFFER, HEAR_W, HEAR_A, GRANT, SKIP, HANDED, CLOSE, FREE, DONE, /* a holder lets go */
  UNBORN, ARRIVE, SPEAK, AWAIT, FORKING, FORKING_DROPPED, DYING, DEAD
};

/* The kernel: the listener.  It lives, and the name is taken, while somebody refers to it. */
byte refs;           /* descriptors of it, and messages in flight that carry it */
bit listening;
chan queue = [ROOM + 1] of { byte };

/* The kernel: the connection in which each process waits. */
bit joined[N];       /* the waiter's end: neither closed nor shut down */
bit server[N];       /* the other end, which is in the backlog first */
bit said[N], offered[N], answered[N], granted[N];  /* sent and not yet read; a grant carries the listener */

/* A process. */
mtype pc[N] = BIND;
bit stopped[N];
bit listener[N];     /* has a descriptor of the listener */
bit fd[N];           /* has a descriptor of its connection */
byte head[N] = NOBODY; /* whose connection it has accepted */
bit late[N];         /* a release that has taken too long */
byte rounds[N];
bit deadline[N], cancelled[N];

/* A forked child's copies. */
bit kid_listener;
byte kid_conn = NOBODY, kid_head = NOBODY;
byte mover = NOBODY; /* who forked inside across_fork */
bit word;            /* its child has said so */

byte crashes = CRASHES, stops = STOPS, giveups = GIVEUPS, forks = FORKS, moves = MOVES;

/* What must never be, each with what is kept to see it. */
bit two_owners;      /* two processes believe that they hold the lock */
byte owners;
bit overtaken;       /* somebody who waits, and runs, is passed over by one who came later */
chan line = [N] of { byte };   /* who waits, in the order of joining */
bit entitled[N];     /* waits since before the release began */
bit order_lost;      /* an owner was killed: all race */
bit asleep;          /* granted to one who was stopped before the offer and has not run since */
bit slept[N];
bit still_taken;     /* let go with nobody in the queue, and not free */
bit stuck;           /* somebody sleeps for ever */
bit leaked;          /* all are done, and the name is taken */

hidden byte each, entry, rest, whose; /* scratch within a step */

#define at(step) (pc[p] == step && !stopped[p])
#define go(step) pc[p] = step; printf("P%d %e\n", p, step)
#define gone(q) (pc[q] == DYING || pc[q] == DEAD)
#define slow(q) (stopped[q] || gone(q)) /* a partner that runs answers in time */
#ifdef THREADS
#define same_process(a, b) (a < 2 && b < 2) /* 0 and 1 are threads, or tasks, of one process */
#else
#define same_process(a, b) (a == b)
#endif
#define mine(q) (same_process(p, q) && p != q)

/* Ghosts ------------------------------------------------------------------------------------------------------- */

inline leave_line(q) {
  entitled[q] = 0;
  if :: line??[eval(q)] -> line??eval(q) :: else fi
}

inline own() {
  owners++;
  two_owners = owners > 1;
  assert(!two_owners);
}

inline begin_release() { /* who waits now is to have the lock before any newcomer */
  for (each : 0 .. N - 1) { entitled[each] = line??[eval(each)] }
}

/* The kernel --------------------------------------------------------------------------------------------------- */

inline unref() { /* unix_release_sock() of the listener, with its last reference: the name is free, its queue reset */
  refs--;
  if
  :: refs > 0
  :: else ->
    listening = 0;
    do
    :: queue?entry ->
      if
      :: entry == NOBODY
      :: else ->
        overtaken = entitled[entry] && !order_lost && !gone(entry);
        assert(!overtaken);
        server[entry] = 0
      fi
    :: empty(queue) -> break
    od;
    do :: line?entry -> entitled[entry] = 0 :: empty(line) -> break od;
    order_lost = 0
  fi
}

inline end_connection(q) { /* the waiter's end is closed or shut down: its entry is a dead one */
  joined[q] = 0; said[q] = 0; answered[q] = 0;
  for (rest : 1 .. len(queue)) {
    queue?entry;
    if :: entry == q -> queue!NOBODY :: else -> queue!entry fi
  }
  for (each : 0 .. N - 1) {
    if :: head[each] == q -> head[each] = NOBODY :: else fi
  }
  if :: kid_head == q -> kid_head = NOBODY :: else fi;
}

inline end_of(q) { /* nobody has the waiter's end any more: a grant that was not read is dropped */
  end_connection(q);
  offered[q] = 0;
  if :: granted[q] -> granted[q] = 0; unref() :: else fi
}

inline close_conn(q) { /* q closes its descriptor */
  fd[q] = 0;
  if
  :: kid_conn == q && pc[q] == DYING /* a forked copy keeps it */
  :: else ->
    if :: kid_conn == q -> kid_conn = NOBODY :: else fi;
    end_of(q)
  fi
}

inline close_head() { /* p closes the connection that it had accepted: its waiter reads the end */
  entry = head[p];
  head[p] = NOBODY;
  if :: entry != NOBODY && entry != kid_head -> server[entry] = 0 :: else fi;
  entry = 0
}

/* Taking the lock ---------------------------------------------------------------------------------------------- */

inline bind() { /* _queue.bind: bind() */
  d_step { at(BIND) ->
    if
    :: refs == 0 -> refs = 1; listener[p] = 1; own(); go(LISTEN)
    :: refs > 0 && deadline[p] -> deadline[p] = 0; go(DONE)
    :: else -> go(JOIN)
    fi
  }
}

inline listen() { /* _queue.bind, _queue.receive: listen(), which brands the listener as ours */
  d_step { at(LISTEN) -> listening = 1; go(HELD) }
}

inline join() { /* _queue.join, _queue.join_when_there_is_room: connect(), which ECONNREFUSED or EAGAIN may answer */
  d_step { at(JOIN) ->
    if
    :: refs > 0 && listening && len(queue) < ROOM ->
      queue!p;
      fd[p] = 1; joined[p] = 1; server[p] = 1;
      leave_line(p); line!p;
      go(SAY_W)
#ifdef BREAK_REFUSED_SLEEPS
    :: else -> go(ASLEEP)
#else
    :: else -> go(REFUSED)
#endif
    fi
  }
}

inline refused() { /* _queue.wait: the pause; a look in vain is no step */
#ifdef BREAK_NO_PAUSE
  d_step { at(REFUSED) -> go(BIND) }
#else
  d_step { at(REFUSED) && (refs == 0 || (listening && len(queue) < ROOM)) -> go(BIND) }
#endif
}

inline say_w() { /* _queue._take_turn: say(WAITING) */
  d_step { at(SAY_W) -> said[p] = server[p]; go(ASLEEP) }
}

inline let_go() { /* _queue._take_turn: the end of the connection; then wait() binds again */
#ifdef BREAK_END_IS_MINE
  close_conn(p); leave_line(p); listener[p] = 1; refs++; own(); go(HELD)
#else
  close_conn(p); go(BIND)
#endif
}

inline wake() { /* _queue.accept_offer: read_byte() */
  d_step { at(ASLEEP) && fd[p] && (offered[p] || !server[p]) ->
    if
    :: offered[p] -> offered[p] = 0; go(ANSWER)
    :: else -> let_go()
    fi
  }
}

inline answer() { /* _queue.accept_offer: say(ANSWER) */
  d_step { at(ANSWER) -> answered[p] = server[p]; go(AWAKE) }
}

inline take_grant() { /* hand.append() */
  granted[p] = 0; listener[p] = 1;
  overtaken = !line?[eval(p)];
  assert(!overtaken);
  leave_line(p)
}

inline receive() { /* _queue.receive, _descriptors.receive_message: recvmsg() */
  d_step { at(AWAKE) && (granted[p] || !server[p]) ->
    if
    :: granted[p] -> take_grant(); close_conn(p); own(); go(LISTEN)
    :: else -> let_go()
    fi
  }
}

inline give_up() { /* _queue.give_up, _queue.wait: shutdown(); during a pause, only the time is over */
  atomic { !stopped[p] && giveups > 0 && !deadline[p] &&
           (pc[p] == REFUSED || pc[p] == ASLEEP || pc[p] == ANSWER || pc[p] == AWAKE) ->
    giveups--;
    if :: deadline[p] = 1 :: cancelled[p] = 1 fi;
    d_step {
      if
      :: pc[p] == REFUSED && cancelled[p] -> finish()
      :: pc[p] == REFUSED && deadline[p] -> go(BIND)
      :: else ->
        if :: granted[p] :: else -> leave_line(p) fi;
#ifndef BREAK_NO_SHUTDOWN
        end_connection(p);
#endif
        go(LAST_READ)
      fi
    }
  }
}

inline last_read() { /* _queue.give_up, _queue._take_turn: receive(); a grant is kept, or handed over if cancelled */
  d_step { at(LAST_READ) ->
    if
#ifndef BREAK_NO_LAST_READ
    :: granted[p] && deadline[p] -> take_grant(); close_conn(p); deadline[p] = 0; own(); go(LISTEN)
    :: granted[p] && cancelled[p] -> take_grant(); close_conn(p); begin_release();
#ifdef BREAK_CANCEL_CLOSES
      go(FREE)
#else
      go(ACCEPT)
#endif
    :: else ->
#else
    :: true ->
#endif
#ifdef BREAK_NO_SHUTDOWN
      go(LAST_CLOSE)
    fi
  }
}

inline last_close() {
  d_step { at(LAST_CLOSE) ->
    if
    :: true ->
#endif
      leave_line(p); close_conn(p);
      if :: deadline[p] -> go(BIND) :: else -> finish() fi
    fi
  }
}

/* Letting go --------------------------------------------------------------------------------------------------- */

inline finish() { /* acquire or release returns, or raises */
  deadline[p] = 0; cancelled[p] = 0; late[p] = 0;
  rounds[p]++;
  if :: rounds[p] < ROUNDS -> go(BIND) :: else -> go(DONE) fi
}

inline release() { /* _ownership._drop: the lock is not ours any more */
  d_step { at(HELD) ->
#ifndef BREAK_DROP_AFTER_GRANT
    owners--;
#endif
    begin_release();
    go(RELEASE)
  }
}

inline look() { /* _queue.close_if_idle: poll() */
  d_step { at(RELEASE) ->
    if
#ifdef BREAK_CLOSE_WITH_WAITERS
    :: true -> go(FREE)
#else
    :: len(queue) == 0 -> go(FREE)
    :: else -> go(ACCEPT)
#endif
    fi
  }
}

inline accept() { /* _handover.hand_over, _handover._keep_offering, _descriptors.accept: accept(); of a dead entry, all that follows fails at once */
  d_step { at(ACCEPT) ->
    if
    :: len(queue) == 0 -> go(FREE)
    :: else ->
      queue?entry;
      if
      :: entry != NOBODY -> head[p] = entry; go(OFFER)
      :: entry == NOBODY && late[p] -> go(FREE)
      :: else
      fi
    fi
  }
}

inline offer() { /* _handover._ask: say(OFFER) */
  d_step { at(OFFER) ->
    if
    :: head[p] == NOBODY -> go(SKIP)
    :: else ->
      offered[head[p]] = 1;
      slept[head[p]] = stopped[head[p]];
      go(HEAR_W)
    fi
  }
}

inline hear_w() { /* _handover._ask, _handover._keep_offering: read_byte() == WAITING */
  d_step { at(HEAR_W) && (head[p] == NOBODY || said[head[p]] || slow(head[p])) ->
    if
    :: head[p] == NOBODY -> go(SKIP)
    :: else ->
      if
      :: !said[head[p]] -> leave_line(head[p]); go(SKIP)
      :: else ->
        said[head[p]] = 0;
        if
#ifdef BREAK_NO_ANSWER
        :: true -> go(GRANT)
#else
        :: mine(head[p]) -> go(GRANT)
        :: else -> go(HEAR_A)
#endif
        fi
      fi
    fi
  }
}

#ifdef BREAK_IMPATIENT
#define out_of_time(q) (slow(q) || entitled[q]) /* nobody twice, which would have no end */
#elif defined(BREAK_PATIENT)
#define out_of_time(q) gone(q)
#else
#define out_of_time(q) (slow(q) || late[p])
#endif

inline hear_a() { /* _handover.hand_over, _handover._keep_offering: read_byte() == ANSWER, within SOON and what is left of the release's time */
  d_step { at(HEAR_A) && (head[p] == NOBODY || answered[head[p]] || out_of_time(head[p])) ->
    if
    :: head[p] == NOBODY -> go(SKIP)
    :: else ->
      if
      :: answered[head[p]] -> answered[head[p]] = 0; go(GRANT)
      :: else ->
        if :: slow(head[p]) || late[p] -> leave_line(head[p]) :: else fi;
        go(SKIP)
      fi
    fi
  }
}

inline grant() { /* _handover._grant: sendmsg() */
  d_step { at(GRANT) ->
    if
#ifdef BREAK_GRANT_UNCHECKED
    :: head[p] == NOBODY -> go(HANDED)
#else
    :: head[p] == NOBODY -> go(SKIP)
#endif
    :: else ->
      asleep = slept[head[p]];
      assert(!asleep);
      granted[head[p]] = 1; refs++;
      go(HANDED)
    fi
  }
}

inline skip_head() { /* _handover._keep_offering: close() of the head, and the look at the clock */
  d_step { at(SKIP) ->
#ifdef BREAK_SKIP_KEEPS
    head[p] = NOBODY;
#else
    close_head();
#endif
    if :: late[p] -> go(FREE) :: else -> go(ACCEPT) fi
  }
}

inline close_copy() { /* _handover.hand_over, _handover._keep_offering: close() of the listener, which is another's now */
  d_step { at(HANDED) ->
#ifndef BREAK_KEEP_COPY
    listener[p] = 0;
    unref();
#endif
    go(CLOSE)
  }
}

inline close_granted() { /* _handover.hand_over, _handover._keep_offering: close() of the connection */
  d_step { at(CLOSE) ->
#ifdef BREAK_DROP_AFTER_GRANT
    owners--;
#endif
    close_head();
    finish()
  }
}

inline free_lock() { /* _queue.close_if_idle, _handover.hand_over, _handover._keep_offering: the listener is closed, nobody has taken it */
  d_step { at(FREE) ->
#ifdef STRICT_ORDER
    begin_release(); /* also who joined after the last look at the queue */
#endif
    if :: late[p] -> order_lost = 1 :: else fi;
    listener[p] = 0;
    unref();
#ifdef STRICT_FREE
    still_taken = refs > 0;
    assert(!still_taken);
#endif
    finish()
  }
}

/* Fate --------------------------------------------------------------------------------------------------------- */

#define lives(q) (pc[q] != DONE && pc[q] != UNBORN && !gone(q))

inline crash() { /* SIGKILL: nothing of the process runs any more, and the kernel will close what it has */
  d_step { crashes > 0 && lives(p) ->
    for (each : 0 .. N - 1) {
      if
      :: same_process(p, each) && lives(each) ->
        if :: pc[each] == LISTEN || pc[each] == HELD || pc[each] == SPEAK || pc[each] == AWAIT -> owners-- :: else fi;
        order_lost = order_lost || listener[each];
        leave_line(each);
        stopped[each] = 0; late[each] = 0; deadline[each] = 0; cancelled[each] = 0;
        pc[each] = DYING; printf("P%d killed\n", each)
      :: else
      fi
    }
    crashes--
  }
}

/* exit_files(): one descriptor after the other, in any order */

inline die_listener() {
  d_step { pc[p] == DYING && listener[p] ->
    listener[p] = 0;
#ifndef BREAK_CRASH_KEEPS
    unref()
#endif
  }
}

inline die_head() {
  d_step { pc[p] == DYING && head[p] != NOBODY -> close_head() }
}

inline die_conn() {
  d_step { pc[p] == DYING && fd[p] -> order_lost = order_lost || granted[p]; close_conn(p) }
}

inline dead() {
  d_step { pc[p] == DYING && !listener[p] && head[p] == NOBODY && !fd[p] -> go(DEAD) }
}

inline stop() { /* SIGSTOP, a debugger, the freezer, swap, a busy event loop */
  d_step { stops > 0 && lives(p) && !stopped[p] ->
    stops--;
    for (each : 0 .. N - 1) {
      if :: same_process(p, each) && lives(each) -> stopped[each] = 1 :: else fi
    }
    printf("P%d stopped\n", p)
  }
}

#ifndef FROZEN
inline continue_() { /* whose release was stopped may have no time left */
  atomic { stopped[p] ->
    for (each : 0 .. N - 1) {
      if :: same_process(p, each) -> stopped[each] = 0; slept[each] = 0 :: else fi
    }
    if
    :: pc[p] == RELEASE || pc[p] == ACCEPT || pc[p] == HEAR_W || pc[p] == OFFER || pc[p] == HEAR_A || pc[p] == SKIP ->
      if :: late[p] = 1 :: skip fi
    :: else
    fi;
    printf("P%d continued\n", p)
  }
}
#endif

/* Forks -------------------------------------------------------------------------------------------------------- */

inline fork() { /* fork(): all is there twice.  The parent need not wait: subprocess does not, nor other threads */
  d_step { forks > 0 && lives(p) && !stopped[p] && (listener[p] || joined[p]) &&
           !kid_listener && kid_conn == NOBODY && kid_head == NOBODY ->
    forks--;
    if :: listener[p] -> kid_listener = 1; refs++ :: else fi;
    if :: fd[p] && joined[p] -> kid_conn = p :: else fi;
    kid_head = head[p];
    printf("P%d forks\n", p)
  }
}

active proctype Kid() { /* _descriptors.close_inherited: close(); or killed before it; or exec() */
end:
  do
#ifndef BREAK_FORK_KEEPS
  :: d_step { kid_listener -> kid_listener = 0; unref() }
  :: d_step { kid_conn != NOBODY ->
       whose = kid_conn;
       kid_conn = NOBODY;
       if :: !fd[whose] -> order_lost = order_lost || granted[whose]; end_of(whose) :: else fi
     }
  :: d_step { kid_head != NOBODY ->
       entry = kid_head;
       kid_head = NOBODY;
       for (each : 0 .. N - 1) {
         if :: head[each] == entry -> entry = NOBODY :: else fi
       }
       if :: entry != NOBODY -> server[entry] = 0 :: else fi
     }
#endif
  :: false
  od
}

inline move() { /* _inherit.prepare: then fork(), inside across_fork */
  d_step { moves > 0 && at(HELD) ->
    moves--;
    mover = p;
    owners--; /* this thread does nothing until it knows who holds the lock */
    listener[N - 1] = 1; refs++;
    rounds[N - 1] = ROUNDS - 1;
    pc[N - 1] = ARRIVE;
    go(FORKING)
  }
}

inline arrive() { /* _inherit.in_child, _ownership._arrive: listen() */
  d_step { at(ARRIVE) -> own(); go(SPEAK) }
}

inline speak() { /* _inherit.in_child: send() */
  d_step { at(SPEAK) -> word = 1; go(AWAIT) }
}

#define in_fork(q) (pc[q] == FORKING || pc[q] == FORKING_DROPPED)

inline await_parent() { /* _inherit.in_child: poll() for the end; a stopped parent is not awaited for ever */
#ifdef BREAK_CHILD_HURRIES
  d_step { at(AWAIT) -> go(HELD) }
#else
  d_step { at(AWAIT) && (!in_fork(mover) || stopped[mover]) -> go(HELD) }
#endif
}

#define forked (word || gone(N - 1) || stopped[N - 1]) /* the child has spoken, ended without, or takes too long */

inline leave() { /* _inherit.in_parent, _ownership._leave: close(), unless the child is gone without a word */
#ifdef BREAK_PARENT_STAYS
  d_step { at(FORKING) -> own(); go(HELD) }
#else
  d_step { at(FORKING) && forked ->
    if
    :: !word && gone(N - 1) -> own(); go(HELD)
    :: else -> listener[p] = 0; unref(); finish()
    fi
  }
#endif
}

#ifdef BREAK_DROP_IN_FORK
inline drop_in_fork() { /* another thread's release during the fork */
  d_step { at(FORKING) -> go(FORKING_DROPPED) }
}

inline go_on_after_fork() {
  d_step { at(FORKING_DROPPED) && forked -> begin_release(); go(ACCEPT) }
}
#endif

/* All together ------------------------------------------------------------------------------------------------- */

proctype Process(byte p) {
end:
  do
  :: bind() :: listen() :: join() :: refused() :: say_w() :: wake() :: answer() :: receive()
  :: give_up() :: last_read()
#ifdef BREAK_NO_SHUTDOWN
  :: last_close()
#endif
  :: release() :: look() :: accept() :: offer() :: hear_w() :: hear_a() :: grant() :: skip_head()
  :: close_copy() :: close_granted() :: free_lock()
  :: crash() :: die_listener() :: die_head() :: die_conn() :: dead()
  :: stop()
#ifndef FROZEN
  :: continue_()
#endif
#if FORKS
  :: fork()
#endif
#if MOVES
  :: move() :: arrive() :: speak() :: await_parent() :: leave()
#ifdef BREAK_DROP_IN_FORK
  :: drop_in_fork() :: go_on_after_fork()
#endif
#endif
  od
}

init {
  atomic {
    for (each : 0 .. N - 1) { run Process(each) }
#if MOVES
    pc[N - 1] = UNBORN;
#endif
  }
}

#ifdef STRICT_STOP
#define HAS_GRANTED(q) (pc[q] == HANDED)
#else
#define HAS_GRANTED(q) false
#endif

active proctype Monitor() { /* nobody can do anything any more */
  bit excuse; /* somebody was stopped for ever while he held the lock, let go of it, or had just said yes to it */
end:
  timeout ->
  d_step {
    for (each : 0 .. N - 1) {
      excuse = excuse || (stopped[each] &&
        ((listener[each] && !HAS_GRANTED(each)) || (granted[each] && pc[each] != ASLEEP && pc[each] != ANSWER)))
    }
    for (each : 0 .. N - 1) {
      stuck = stuck || (!excuse && lives(each) && !stopped[each])
    }
    assert(!stuck);
    for (each : 0 .. N - 1) {
      excuse = excuse || stopped[each]
    }
    leaked = refs > 0 && !excuse;
    assert(!leaked)
  }
}
