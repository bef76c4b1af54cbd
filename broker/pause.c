/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whose scanners are to rest.
 *
 * PAUSE and RESUME go to sessions like any other operation, and each session keeps to
 * what it was told last. What was said for all processes holds for those to come as
 * well: WELCOME tells it to them. Root's word (in a user's own broker: that user's, too)
 * is for everybody and takes the place of what users have said before; a user's is for
 * the user's domains, and is kept as long as there is one.
 *
 * UNMERGE for all pauses, too: else all would be merged again a moment later.
 */
#include <unistd.h>

#include "broker/broker.h"

void broker_pause_note(struct broker *b, uid_t asker, uint32_t op, uint32_t ctl_flags)
{
	bool pause = op == CORE_WIRE_OP_PAUSE || op == CORE_WIRE_OP_UNMERGE;
	struct broker_user *u;

	if (!(ctl_flags & CORE_WIRE_CTL_ALL) || (!pause && op != CORE_WIRE_OP_RESUME))
		return;
	if (asker == 0 || asker == geteuid()) {
		b->paused = pause;
		TAILQ_FOREACH(u, &b->users, link)
			u->word = BROKER_WORD_NONE;
		return;
	}
	TAILQ_FOREACH(u, &b->users, link) {
		if (u->uid == asker)
			u->word = pause ? BROKER_WORD_PAUSE : BROKER_WORD_RESUME;
	}
}

bool broker_pause_holds(const struct broker *b, const struct broker_domain *d)
{
	enum broker_word word = d->user->word;

	return word == BROKER_WORD_NONE ? b->paused : word == BROKER_WORD_PAUSE;
}
