/*
 * Every rank sends a part of its 64 MB to every rank, by MPI_Alltoall; every word says who wrote it
 * for whom, and where it belongs.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned long word(int from, int to, long place)
{
	unsigned long x = ((unsigned long)from << 56) ^ ((unsigned long)to << 48) ^ (unsigned long)place;

	x *= 0x9e3779b97f4a7c15u;
	return x ^ (x >> 29);
}

int main(int argc, char **argv)
{
	int rank, size, wrong = 0, all = 0;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);

	long part = (64L << 20) / (long)sizeof(unsigned long) / size;
	unsigned long *out = malloc(part * size * sizeof *out), *in = calloc(part * size, sizeof *in);

	for (int to = 0; to < size; to++)
		for (long i = 0; i < part; i++)
			out[to * part + i] = word(rank, to, i);
	MPI_Alltoall(out, part, MPI_UNSIGNED_LONG, in, part, MPI_UNSIGNED_LONG, MPI_COMM_WORLD);
	for (int from = 0; from < size; from++)
		for (long i = 0; i < part; i++)
			wrong |= in[from * part + i] != word(from, rank, i);
	MPI_Allreduce(&wrong, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	if (rank == 0)
		printf(all ? "alltoall is wrong\n" : "alltoall of %d ranks is right\n", size);
	MPI_Finalize();
	return all != 0;
}
