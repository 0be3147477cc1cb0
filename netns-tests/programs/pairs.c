/*
 * PVM: every slave exchanges messages of many sizes with every other, each with a checksum, by the
 * route that the argument names: "default" (through the daemons) or "direct" (TCP between tasks).
 * The master spawns one slave on each host, tells them about each other, and gathers what they say.
 */
#include <pvm3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_HOSTS = 64, TAG_BEGIN = 1, TAG_DATA = 2, TAG_RESULT = 3, MESSAGES = 40 };

static uint32_t checksum(const char *bytes, int length)
{
	uint32_t sum = 2166136261u;

	for (int i = 0; i < length; i++)
		sum = (sum ^ (unsigned char)bytes[i]) * 16777619u;
	return sum;
}

/* From one byte to a quarter of a megabyte, and never a round number. */
static int length_of(int number)
{
	return 1 + (number * number * number * 4099) % 262139;
}

static void send_to(int tid, int number, int own)
{
	int length = length_of(number);
	char *bytes = malloc(length);

	for (int i = 0; i < length; i++)
		bytes[i] = (char)(i * 31 + number * 7 + own);
	int sum = (int)checksum(bytes, length);
	pvm_initsend(PvmDataDefault);
	pvm_pkint(&number, 1, 1);
	pvm_pkint(&length, 1, 1);
	pvm_pkint(&sum, 1, 1);
	pvm_pkbyte(bytes, length, 1);
	pvm_send(tid, TAG_DATA);
	free(bytes);
}

/*
 * Receives one message of `tid`, and says 0 if it is whole and the first with its number. The order
 * is not looked at: while PVM sets up a direct route, a message may overtake one sent before.
 */
static int receive_from(int tid, char *seen)
{
	int number, length, sum;

	if (pvm_recv(tid, TAG_DATA) < 0)
		return 1;
	pvm_upkint(&number, 1, 1);
	pvm_upkint(&length, 1, 1);
	pvm_upkint(&sum, 1, 1);
	if (number < 0 || number >= MESSAGES || seen[number]++ || length != length_of(number))
		return 1;
	char *bytes = malloc(length);
	pvm_upkbyte(bytes, length, 1);
	int wrong = (int)checksum(bytes, length) != sum;
	free(bytes);
	return wrong;
}

static int slave(int parent)
{
	int count, direct, tids[MOST_HOSTS], own = pvm_mytid(), wrong = 0, exchanged = 0;
	char name[256];
	static char seen[MOST_HOSTS][MESSAGES];

	pvm_recv(parent, TAG_BEGIN);
	pvm_upkint(&direct, 1, 1);
	pvm_upkint(&count, 1, 1);
	pvm_upkint(tids, count, 1);
	pvm_setopt(PvmRoute, direct ? PvmRouteDirect : PvmDontRoute);
	for (int number = 0; number < MESSAGES; number++) {
		for (int i = 0; i < count; i++)
			if (tids[i] != own)
				send_to(tids[i], number, own);
		for (int i = 0; i < count; i++)
			if (tids[i] != own) {
				wrong += receive_from(tids[i], seen[i]);
				exchanged++;
			}
	}
	gethostname(name, sizeof name);
	pvm_initsend(PvmDataDefault);
	pvm_pkint(&wrong, 1, 1);
	pvm_pkint(&exchanged, 1, 1);
	pvm_pkstr(name);
	pvm_send(parent, TAG_RESULT);
	pvm_exit();
	return 0;
}

int main(int argc, char **argv)
{
	int hosts, architectures, tids[MOST_HOSTS], wrong_in_all = 0;
	struct pvmhostinfo *info;
	int parent = pvm_parent();

	if (pvm_mytid() < 0)
		return 1;
	if (parent > 0)
		return slave(parent);

	int direct = argc > 1 && strcmp(argv[1], "direct") == 0;
	pvm_config(&hosts, &architectures, &info);
	for (int i = 0; i < hosts; i++)
		if (pvm_spawn(argv[0], NULL, PvmTaskHost, info[i].hi_name, 1, &tids[i]) != 1) {
			printf("no slave on %s: %d\n", info[i].hi_name, tids[i]);
			pvm_exit();
			return 1;
		}
	pvm_initsend(PvmDataDefault);
	pvm_pkint(&direct, 1, 1);
	pvm_pkint(&hosts, 1, 1);
	pvm_pkint(tids, hosts, 1);
	pvm_mcast(tids, hosts, TAG_BEGIN);
	for (int i = 0; i < hosts; i++) {
		int wrong, exchanged;
		char name[256];

		pvm_recv(-1, TAG_RESULT);
		pvm_upkint(&wrong, 1, 1);
		pvm_upkint(&exchanged, 1, 1);
		pvm_upkstr(name);
		printf("%s: %d exchanged, %d wrong\n", name, exchanged, wrong);
		wrong_in_all += wrong + (exchanged != MESSAGES * (hosts - 1));
	}
	printf(wrong_in_all ? "pairs are wrong\n" : "pairs of %d hosts are right\n", hosts);
	pvm_exit();
	return wrong_in_all != 0;
}
