// SPDX-License-Identifier: GPL-2.0-or-later
/* A library that connects as soon as it is loaded, and ends the program. */
#include "probe.h"

__attribute__((constructor)) static void loaded(void)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
				  .ai_socktype = SOCK_STREAM };
	struct addrinfo *found;

	if (getaddrinfo(setting("PROBE_ADDRESS"), setting("PROBE_PORT"), &hints,
			&found))
		untried("getaddrinfo");
	memcpy(&peer, found->ai_addr, found->ai_addrlen);
	peer_len = found->ai_addrlen;
	_exit(verdict_of(connect_by(new_socket())));
}
