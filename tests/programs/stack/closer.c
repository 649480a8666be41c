/* Connects to itself over loopback and does, in a function of its own, what its argument says. A line that
 * a test looks for has the argument in a comment. For each line of its stdin it does the deed and says "done". */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FUNCTION __attribute__((noipa))

static int client, server;

FUNCTION void connect_to_itself(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bind(listener, (struct sockaddr *)&address, size);
	listen(listener, 1);
	getsockname(listener, (struct sockaddr *)&address, &size);
	client = socket(AF_INET, SOCK_STREAM, 0);
	connect(client, (struct sockaddr *)&address, size);
	server = accept(listener, NULL, NULL);
	close(listener);
	if (server < 0) {
		perror("no connection");
		exit(1);
	}
}

FUNCTION void receive_a_question(void)
{
	struct pollfd question = { .fd = server, .events = POLLIN };

	send(client, "what", 4, 0);
	poll(&question, 1, -1);
}

FUNCTION void close_unread(void)
{
	close(server); /* unread */
}

FUNCTION void abort_connection(void)
{
	struct linger at_once = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(server, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
	close(server); /* linger */
}

FUNCTION void send_after_shutdown(void)
{
	shutdown(server, SHUT_WR);
	send(server, "late", 4, MSG_NOSIGNAL); /* epipe */
}

FUNCTION void serve(const char *how)
{
	if (!strcmp(how, "linger"))
		abort_connection();
	else if (!strcmp(how, "epipe"))
		send_after_shutdown();
	else if (strcmp(how, "exit"))
		close_unread(); /* served */
}

int main(int count, char **arguments)
{
	const char *how = count > 1 ? arguments[1] : "unread";
	char line[16];

	connect_to_itself();
	receive_a_question();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		serve(how);
		if (!strcmp(how, "exit") || !strcmp(how, "gone"))
			return 0;
		if (!strcmp(how, "exec"))
			execlp("sh", "sh", "-c", "echo done; read line", NULL);
		puts("done");
		fflush(stdout);
	}
	return 0;
}
